"""`inrecon bench live`: interventional streams frame by frame, by methods that follow, forget, or copy."""
