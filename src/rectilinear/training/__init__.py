"""Training decoders, and penalties that make them less linear."""
