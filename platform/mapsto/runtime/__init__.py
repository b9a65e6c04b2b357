"""Ray around the stages: sessions, resource checks, job submission, and what is said to the person who waits."""
