"""An HTTP service over an engine folder, with OpenAI's video API: docs/serving.md."""
