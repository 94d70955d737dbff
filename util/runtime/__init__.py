"""What every command uses: errors, files, logs, tables, seeds, processes and precision."""
