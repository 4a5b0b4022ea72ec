"""What the command, the function and a plan take where nothing is said; a module of its own, for --help to be quick."""

#: Earlier tokens, and rates of decaying means, that a filter sees.
TAPS, RATES = 3, (1.0, 0.8)
