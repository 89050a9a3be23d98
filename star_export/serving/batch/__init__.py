"""A data set's rows through the service: read as a stream, answered by many at once, written in their order."""
