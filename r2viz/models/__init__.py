"""Networks: blocks, the assembly, the table of what can be loaded, and the weights."""
