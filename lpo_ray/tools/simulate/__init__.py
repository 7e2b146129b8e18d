"""The training loop against simulated engines and learners, in virtual time: how a design behaves past one machine."""
