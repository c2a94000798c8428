"""Models of evle inside of other libraries' loops."""
