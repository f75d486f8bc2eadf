"""The cloud's side: sessions of answers, batched across each other on one decoder."""
