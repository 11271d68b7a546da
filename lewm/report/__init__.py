"""Results in words and pictures: the page, animations, and claims held against what was
measured."""
