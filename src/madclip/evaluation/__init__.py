"""A detector against a test set: the protocol, what is measured, and several draws of the same experiment."""
