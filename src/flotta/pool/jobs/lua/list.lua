-- One page of the jobs of a worker ('': of the parked ones), without payloads.
-- KEYS[1] meta   ARGV: worker, cursor ('0' first), about how many
-- Returns {next cursor ('0': that was all), for each job {key, then the fields s o g k n f c l m t b e of its record}}.
-- A job that is there all the time is listed at least once.
local page = redis.call('SSCAN', ARGV[1] == '' and PARKED or OWNED .. ARGV[1], ARGV[2], 'COUNT', ARGV[3])
local reply = {page[1]}
for _, key in ipairs(page[2]) do
  local fields = redis.call('HMGET', JOB .. key, 's', 'o', 'g', 'k', 'n', 'f', 'c', 'l', 'm', 't', 'b', 'e')
  if fields[1] then
    reply[#reply + 1] = {key, unpack(fields)}
  end
end
return reply
