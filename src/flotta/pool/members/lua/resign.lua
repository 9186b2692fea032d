-- The coordinator goes: another node takes over at its next look, not when the lease ends.
-- ARGV: node.  Returns 1, or 0 if it did not coordinate.
if redis.call('GET', P .. 'coordinator') ~= ARGV[1] then
  return 0
end
return redis.call('DEL', P .. 'coordinator')
