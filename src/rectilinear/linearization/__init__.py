"""Which blocks to replace by what, the fits, and the edited model as a checkpoint."""
