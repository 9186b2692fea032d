-- A worker that takes no more tasks is rung no more. ARGV: worker. A second run changes nothing.
return redis.call('HDEL', IDLE, ARGV[1])
