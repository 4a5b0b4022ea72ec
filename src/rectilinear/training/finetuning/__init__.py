"""Fine-tuning decoders on tasks, and what that does to their linearity."""
