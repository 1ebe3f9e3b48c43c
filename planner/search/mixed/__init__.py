"""The search over pipelines whose stages run on different kinds of devices."""
