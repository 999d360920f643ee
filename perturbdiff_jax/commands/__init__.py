"""The verbs of the console command, one file each: `fill(parser)` adds options, `run(args)` does the job."""
