"""One file per rule: which undecided slots of a window become final, and which reopen."""
