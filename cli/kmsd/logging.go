package main

import (
	"fmt"
	"log/slog"

	"google.golang.org/grpc/grpclog"
)

// captureLogs has what libraries log by themselves come through the node's own log, so that
// there is one place, one format and one level.
func captureLogs(log *slog.Logger) {
	slog.SetDefault(log) // package log, too
	grpclog.SetLoggerV2(grpcLog{log.With("component", "grpc")})
}

// grpcLog is gRPC's log: its errors only, as gRPC does by itself. What comes below tells of
// every connection that clients and nodes try.
type grpcLog struct{ to *slog.Logger }

// Info implements grpclog.LoggerV2.
func (l grpcLog) Info(...any) {}

// Infoln implements grpclog.LoggerV2.
func (l grpcLog) Infoln(...any) {}

// Infof implements grpclog.LoggerV2.
func (l grpcLog) Infof(string, ...any) {}

// Warning implements grpclog.LoggerV2.
func (l grpcLog) Warning(...any) {}

// Warningln implements grpclog.LoggerV2.
func (l grpcLog) Warningln(...any) {}

// Warningf implements grpclog.LoggerV2.
func (l grpcLog) Warningf(string, ...any) {}

// Error implements grpclog.LoggerV2.
func (l grpcLog) Error(args ...any) { l.to.Warn(fmt.Sprint(args...)) }

// Errorln implements grpclog.LoggerV2.
func (l grpcLog) Errorln(args ...any) { l.to.Warn(fmt.Sprint(args...)) }

// Errorf implements grpclog.LoggerV2.
func (l grpcLog) Errorf(format string, args ...any) { l.to.Warn(fmt.Sprintf(format, args...)) }

// Fatal implements grpclog.LoggerV2; gRPC ends the process behind it.
func (l grpcLog) Fatal(args ...any) { l.to.Error(fmt.Sprint(args...)) }

// Fatalln implements grpclog.LoggerV2.
func (l grpcLog) Fatalln(args ...any) { l.to.Error(fmt.Sprint(args...)) }

// Fatalf implements grpclog.LoggerV2.
func (l grpcLog) Fatalf(format string, args ...any) { l.to.Error(fmt.Sprintf(format, args...)) }

// V implements grpclog.LoggerV2.
func (l grpcLog) V(int) bool { return false }
