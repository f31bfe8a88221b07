"""The commands of the command line, one file for each. What is heavy is imported inside of them."""
