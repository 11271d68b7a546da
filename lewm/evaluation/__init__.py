"""How often goals are reached, in which tasks, beside which floors, and how two runs compare."""
