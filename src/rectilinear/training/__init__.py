"""What all training here shares: the penalty on hidden states, what is added to Trainer, checkpoints."""
