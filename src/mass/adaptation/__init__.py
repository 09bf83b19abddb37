"""A problem becomes practice, practice gets weights, the weights change an adapter, and the adapted model answers."""
