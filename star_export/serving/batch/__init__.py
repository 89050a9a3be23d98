"""The rows of a data set through the service: read as a stream, answered together, written in their order."""
