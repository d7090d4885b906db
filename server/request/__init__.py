"""From a request's JSON to a job."""
