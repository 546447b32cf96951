"""The losses of optax, for switching. No backend: a spec runs on its tensors in the adapter that owns them."""
