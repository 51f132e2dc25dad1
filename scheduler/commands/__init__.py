"""The commands, one file for each group of them. They parse, call and print; the work is done elsewhere."""
