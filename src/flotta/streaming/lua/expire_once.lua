-- A fixed time to live: set when the key has none, never extended. (PEXPIRE NX needs 7.0.)
-- KEYS[1] stream   ARGV[1] ttl in ms
if redis.call('PTTL', KEYS[1]) ~= -1 then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[1])
