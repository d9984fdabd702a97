"""How units are worked on: one unit from reading to its commit, attempts that are killed, processes, progress."""
