-- Tasks that somebody waits for. ARGV: node ('': only look), ids. Returns for each: state, value. '' and '': unknown.
-- One that has not ended remembers the node, which hears `result` when it ends. A second run changes nothing.
local node = ARGV[1]
local found = {}
for i = 2, #ARGV do
  local key = TASK .. ARGV[i]
  local v = redis.call('HMGET', key, 's', 'z', 'w')
  found[#found + 1] = v[1] or ''
  if v[1] and not ENDED[v[1]] then
    found[#found + 1] = ''
    if node ~= '' and not string.find(',' .. (v[3] or '') .. ',', ',' .. node .. ',', 1, true) then
      redis.call('HSET', key, 'w', v[3] and v[3] .. ',' .. node or node, 'f', '1')
    end
  else
    found[#found + 1] = v[2] or ''
  end
end
return found
