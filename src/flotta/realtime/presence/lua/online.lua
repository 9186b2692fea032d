-- The sockets of users, those of live instances only.
-- ARGV: users. Returns for each a list of their records.
local answer = {}
for i, user in ipairs(ARGV) do
  local records = {}
  for _, value in ipairs(redis.call('HVALS', USER .. user)) do
    local owner, _, record = parts(value)
    if is_live(owner) then
      records[#records + 1] = record
    end
  end
  answer[i] = records
end
return answer
