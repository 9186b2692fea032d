-- Forgets nodes whose presence has ended. One that lives after all makes its stream anew with its next beat.
-- ARGV: nodes.  Returns how many were forgotten.
local buried = 0
for _, node in ipairs(ARGV) do
  local until_ms = redis.call('ZSCORE', P .. 'nodes', node)
  if until_ms and tonumber(until_ms) <= now_ms() then
    redis.call('ZREM', P .. 'nodes', node)
    redis.call('UNLINK', REPLIES .. node)
    buried = buried + 1
  end
end
return buried
