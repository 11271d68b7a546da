"""LeWorldModel, whole: collect, train, plan, probe and explain a world model that learns from pixels and actions alone."""

__version__ = "0.1.0"
