"""From pictures and a goal to actions: the agent, the cost of a plan, and the search for it."""
