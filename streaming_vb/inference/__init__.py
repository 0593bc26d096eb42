"""Local primitives A(C, prior): each fits a posterior to the records of one interval, and returns evidence."""
