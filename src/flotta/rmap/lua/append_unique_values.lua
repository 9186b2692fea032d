-- Append those of ARGV[5...] that the list at key ARGV[4] lacks. Returns the stored list (false: none).
local stored = redis.call("HGET", hash, ARGV[4])
local items, present, changed = read_items(stored), {}, false
for _, item in ipairs(items) do
  present[item] = true
end
for i = 5, #ARGV do
  if not present[ARGV[i]] then
    table.insert(items, ARGV[i])
    present[ARGV[i]] = true
    changed = true
  end
end
if changed then
  stored = cjson.encode(items)
  commit_set(ARGV[4], stored)
end
return finish(stored)
