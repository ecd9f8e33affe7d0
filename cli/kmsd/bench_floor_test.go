//go:build measure

package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/quorumkms/quorumkms/transport"
)

// floorConfig names, in the environment, the files of a floor: this test binary, started
// again as one. A floor ends when its standard input does.
const floorConfig = "KMSD_BENCH_FLOOR"

// echoMethod answers with as many bytes as the first four of the request say.
const echoMethod = "/bench.Floor/Echo"

type echoServer interface {
	echo(context.Context, *wrapperspb.BytesValue) (*wrapperspb.BytesValue, error)
}

type echo struct{}

func (echo) echo(_ context.Context, in *wrapperspb.BytesValue) (*wrapperspb.BytesValue, error) {
	return wrapperspb.Bytes(make([]byte, binary.BigEndian.Uint32(in.GetValue()))), nil
}

// TestBenchEcho is the floor of the calls: a gRPC server with mutual TLS 1.3 and one
// method, and nothing else.
func TestBenchEcho(t *testing.T) {
	dir := os.Getenv(floorConfig)
	if dir == "" { // it is no test: TestBench starts it
		return
	}
	s := grpc.NewServer(grpc.Creds(credentials.NewTLS(floorTLS(t, dir))))
	s.RegisterService(&grpc.ServiceDesc{
		ServiceName: "bench.Floor", HandlerType: (*echoServer)(nil),
		Methods: []grpc.MethodDesc{{MethodName: "Echo", Handler: func(srv any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
			in := new(wrapperspb.BytesValue)
			if err := decode(in); err != nil {
				return nil, err
			}
			return srv.(echoServer).echo(ctx, in)
		}}},
	}, echo{})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	fmt.Println(l.Addr())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		s.Stop()
	}()
	must(t, s.Serve(l))
}

// floorTLS is mutual TLS 1.3, as a server or a client, with a node's certificate.
func floorTLS(t *testing.T, certs string) *tls.Config {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(filepath.Join(certs, "kms-1.crt"), filepath.Join(certs, "kms-1.key"))
	must(t, err)
	ca, err := os.ReadFile(filepath.Join(certs, transport.DevCACert))
	must(t, err)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	return &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{pair}, RootCAs: pool, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert,
	}
}

// floor is a floor that runs, as a process of its own.
type floor struct {
	t     *testing.T
	pid   int
	in    io.Writer
	lines *bufio.Reader
}

func startFloor(t *testing.T, test, config string) *floor {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run", "^"+test+"$", "-test.timeout", "1h")
	cmd.Env = append(os.Environ(), floorConfig+"="+config)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	f := &floor{t, cmd.Process.Pid, in, bufio.NewReader(out)}
	t.Cleanup(func() {
		_ = in.Close()
		_, _ = io.Copy(io.Discard, f.lines)
		_ = cmd.Wait()
	})
	return f
}

// line is the next line that it prints.
func (f *floor) line() string {
	f.t.Helper()
	line, err := f.lines.ReadString('\n')
	if err != nil {
		f.t.Fatalf("a floor ended: %v: %s", err, line)
	}
	return strings.TrimSpace(line)
}

// echoCall is a call of the floor with messages of those sizes.
func echoCall(conn *grpc.ClientConn, request, response int) func(context.Context, int) error {
	in := wrapperspb.Bytes(make([]byte, valueOf(request)))
	binary.BigEndian.PutUint32(in.GetValue(), uint32(valueOf(response))) //nolint:gosec // small
	return func(ctx context.Context, _ int) error {
		return conn.Invoke(ctx, echoMethod, in, new(wrapperspb.BytesValue))
	}
}

// valueOf is how many bytes a BytesValue of that size holds.
func valueOf(size int) int {
	for n := size; n > 4; n-- {
		if proto.Size(wrapperspb.Bytes(make([]byte, n))) <= size {
			return n
		}
	}
	return 4
}
