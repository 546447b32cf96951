"""The Huber loss."""
