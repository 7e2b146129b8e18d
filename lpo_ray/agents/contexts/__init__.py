"""Messages to tokens: chat templates, and contexts that go on in what was sampled."""
