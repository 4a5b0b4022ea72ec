"""Pretraining decoders from random weights."""
