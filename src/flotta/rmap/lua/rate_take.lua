-- Rate limit by the generic cell rate algorithm. Key ARGV[4] holds the theoretical arrival time (TAT) of the next unit,
-- in microseconds of the server's clock. ARGV[5] microseconds per unit, ARGV[6] how far TAT may lie ahead (the burst),
-- ARGV[7] units wanted. Returns whether they were granted, TAT - now before, and now, in microseconds.
local clock = redis.call("TIME")
local now = tonumber(clock[1]) * 1000000 + tonumber(clock[2])
local tat = math.max(tonumber(redis.call("HGET", hash, ARGV[4]) or "0") or 0, now)
local wanted = tat + tonumber(ARGV[5]) * tonumber(ARGV[7])
local granted = wanted - now <= tonumber(ARGV[6])
if granted then
  commit_set(ARGV[4], string.format("%.0f", wanted))
end
keep_alive()
return {granted and 1 or 0, tat - now, clock[1], clock[2]}
