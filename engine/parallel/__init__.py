"""Several devices for one video: guidance, tokens and frames spread over processes, one for each device."""
