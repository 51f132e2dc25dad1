"""The providers that come with the program: one service a file, each by its own published rules."""
