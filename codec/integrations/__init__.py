"""The codec as other libraries expect it: one file per library; nothing else imports these files."""
