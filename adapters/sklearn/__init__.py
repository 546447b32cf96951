"""The losses of scikit-learn, for switching. No backend: a spec runs on its tensors in the adapter that owns them."""
