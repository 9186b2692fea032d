-- Deletes a consumer that nobody has heard of, if it holds nothing: XGROUP DELCONSUMER would drop what it holds.
-- KEYS[1] stream   ARGV: group, consumer, the least idle time in ms
-- Returns 1 if there is no such consumer any more, else 0.
for _, flat in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
  local info = {}
  for i = 1, #flat, 2 do info[flat[i]] = flat[i + 1] end
  if info['name'] == ARGV[2] then
    if info['pending'] > 0 or info['idle'] < tonumber(ARGV[3]) then return 0 end
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[2])
    return 1
  end
end
return 1
