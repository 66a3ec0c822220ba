-- Leases: who holds the slots of a subject. This script acquires, renews and releases them.
--
-- KEYS[1]: a sorted set of tokens; the score is the end of the lease, in milliseconds by the
-- server's clock.
-- ARGV: acquire | renew | release, the token, the number of slots, the lease in milliseconds.
--
-- Returns 1 if the token holds a slot (renew: without interruption), the number of free slots, and
-- the milliseconds until the next lease ends.

local key, action, token = KEYS[1], ARGV[1], ARGV[2]
local amount, lease = tonumber(ARGV[3]), tonumber(ARGV[4])
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)

redis.call('ZREMRANGEBYSCORE', key, '-inf', string.format('%d', now))
if action == 'release' then
  redis.call('ZREM', key, token)
end
local held = redis.call('ZSCORE', key, token)
local taken = redis.call('ZCARD', key)
local granted = 0
if action == 'acquire' and (held or taken < amount) or action == 'renew' and held then
  granted = 1
end
-- A renewal of a lost lease takes a free slot again, so that no third process gets it.
if granted == 1 or action == 'renew' and taken < amount then
  redis.call('ZADD', key, string.format('%d', now + lease), token)
  taken = taken + (held and 0 or 1)
  local last = redis.call('ZRANGE', key, -1, -1, 'WITHSCORES')
  redis.call('PEXPIRE', key, string.format('%d', tonumber(last[2]) - now))
end
local wait = 0
if action == 'acquire' and granted == 0 then
  local ends = redis.call('ZRANGE', key, taken - amount, taken - amount, 'WITHSCORES')
  wait = tonumber(ends[2]) - now
end
return {granted, math.max(amount - taken, 0), wait}
