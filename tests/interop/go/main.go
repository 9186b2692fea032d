// Command peer is the real Go Pulse behind a line protocol, so that tests in another language can drive it.
//
// It reads one JSON object per line from standard input and writes one per line to standard output:
//
//	-> {"id":1,"op":"map.set","handle":"m","key":"k","value":"v"}
//	<- {"id":1,"ok":{...}}   or   {"id":1,"error":"..."}
//	<- {"event":"map.event","handle":"m","kind":"change"}      at any time, asked for by an op
//
// Every request runs in its own goroutine: answers may come in another order than the requests, and a request that
// blocks holds nothing up. The program ends when standard input ends.
//
// Adding operations: a file of this package calls register in its init():
//
//	func init() { register("stream.add", streamAdd) }
//	func streamAdd(ctx context.Context, raw json.RawMessage) (any, error) {
//		var args struct { Handle string `json:"handle"`; Payload Text `json:"payload"` }
//		if err := json.Unmarshal(raw, &args); err != nil { return nil, err }
//		...
//	}
//
// Objects that live on between requests (maps, streams, sinks) are kept in a handles[T]. Text carries bytes that may
// be no UTF-8. client() is the one Redis client of the process, emit() sends an event.
package main

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"sync"
	"unicode/utf8"

	"github.com/redis/go-redis/v9"
)

// handler answers one request. raw is the whole request object; the result is sent as "ok".
type handler func(ctx context.Context, raw json.RawMessage) (any, error)

// handlers is filled by init functions only, so it needs no lock.
var handlers = map[string]handler{}

// register adds an operation; a name used twice is a bug of this program.
func register(op string, h handler) {
	if _, taken := handlers[op]; taken {
		panic("operation registered twice: " + op)
	}
	handlers[op] = h
}

// Text is a Go string (any bytes) in JSON: itself if it is UTF-8, else {"b64": "..."}. Both forms are read.
type Text string

// MarshalJSON implements json.Marshaler.
func (t Text) MarshalJSON() ([]byte, error) {
	if utf8.ValidString(string(t)) {
		return json.Marshal(string(t))
	}
	return json.Marshal(map[string]string{"b64": base64.StdEncoding.EncodeToString([]byte(t))})
}

// UnmarshalJSON implements json.Unmarshaler.
func (t *Text) UnmarshalJSON(raw []byte) error {
	if len(raw) > 0 && raw[0] == '{' {
		var boxed struct {
			B64 []byte `json:"b64"`
		}
		if err := json.Unmarshal(raw, &boxed); err != nil {
			return err
		}
		*t = Text(boxed.B64)
		return nil
	}
	var plain string
	if err := json.Unmarshal(raw, &plain); err != nil {
		return err
	}
	*t = Text(plain)
	return nil
}

// handles keeps objects by the name that the caller gave them.
type handles[T any] struct {
	lock sync.RWMutex
	kept map[string]T
}

func (h *handles[T]) put(name string, object T) {
	h.lock.Lock()
	defer h.lock.Unlock()
	if h.kept == nil {
		h.kept = map[string]T{}
	}
	h.kept[name] = object
}

func (h *handles[T]) get(name string) (T, error) {
	h.lock.RLock()
	defer h.lock.RUnlock()
	object, ok := h.kept[name]
	if !ok {
		return object, fmt.Errorf("no handle %q", name)
	}
	return object, nil
}

// drop forgets a handle and returns what it held.
func (h *handles[T]) drop(name string) (T, error) {
	object, err := h.get(name)
	if err == nil {
		h.lock.Lock()
		delete(h.kept, name)
		h.lock.Unlock()
	}
	return object, err
}

var (
	redisClient *redis.Client
	outLock     sync.Mutex
	out         = bufio.NewWriter(os.Stdout)
)

// client is the Redis client of this process, made from the -redis flag.
func client() *redis.Client { return redisClient }

// send writes one line. Lines of concurrent goroutines never mix.
func send(line any) {
	encoded, err := json.Marshal(line)
	if err != nil {
		encoded, _ = json.Marshal(map[string]string{"event": "fault", "error": err.Error()})
	}
	outLock.Lock()
	defer outLock.Unlock()
	out.Write(append(encoded, '\n'))
	out.Flush()
}

// emit sends an event that answers no request.
func emit(name string, fields map[string]any) {
	line := map[string]any{"event": name}
	for key, value := range fields {
		line[key] = value
	}
	send(line)
}

// answer runs one request and sends its answer.
func answer(ctx context.Context, raw json.RawMessage) {
	var head struct {
		ID int64  `json:"id"`
		Op string `json:"op"`
	}
	if err := json.Unmarshal(raw, &head); err != nil {
		emit("fault", map[string]any{"error": "request is no JSON object: " + err.Error()})
		return
	}
	run, known := handlers[head.Op]
	if !known {
		send(map[string]any{"id": head.ID, "error": "unknown operation " + head.Op})
		return
	}
	result, err := run(ctx, raw)
	if err != nil {
		send(map[string]any{"id": head.ID, "error": err.Error()})
		return
	}
	send(map[string]any{"id": head.ID, "ok": result})
}

func init() {
	register("ping", func(context.Context, json.RawMessage) (any, error) { return "pong", nil })
}

func main() {
	url := flag.String("redis", "redis://127.0.0.1:6379", "URL of the Redis server")
	pool := flag.Int("pool", 0, "connections in the pool; 0 takes the client's default")
	flag.Parse()
	options, err := redis.ParseURL(*url)
	if err != nil {
		fmt.Fprintln(os.Stderr, "peer: bad -redis:", err)
		os.Exit(2)
	}
	if *pool > 0 {
		options.PoolSize = *pool
	}
	redisClient = redis.NewClient(options)
	defer redisClient.Close()

	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(make([]byte, 64*1024), 64*1024*1024)
	for lines.Scan() {
		go answer(ctx, append(json.RawMessage(nil), lines.Bytes()...))
	}
}
