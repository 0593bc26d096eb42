"""How good a posterior is: scores in nats per record, each with its standard error."""
