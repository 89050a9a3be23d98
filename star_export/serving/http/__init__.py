"""The front door that speaks OpenAI's chat completions over HTTP."""
