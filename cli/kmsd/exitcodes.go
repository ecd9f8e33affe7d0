package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

// Exit codes.
const (
	exitOK      = 0
	exitFailed  = 1
	exitConfig  = 2 // configuration, certificates or data directory; or they, or the HSM partition, are not this member's
	exitPIN     = 3 // the HSM refused the PIN: it was tried once
	exitHSM     = 4 // the HSM cannot be used, or fails its self-test
	exitRemoved = 5 // the node was removed from the cluster
	exitStorage = 6 // the disk failed
	exitDiffers = 7 // the node's state differs from the cluster's: keep its data directory
	exitAltered = 8 // the log, a snapshot or the audit trail on the disk was altered, or is damaged
	exitFinding = 9 // of "kmsd audit verify": the trail is not what was signed
)

// exit is what an exit code means, for people and for supervisors.
type exit struct {
	code    int
	meaning string
	final   bool // a supervisor must not start the node again
	do      string
}

func exits() []exit {
	return []exit{
		{exitOK, "stopped as asked", false, "nothing"},
		{exitFailed, "failed for another reason, such as a port in use or a stop that took too long", false, "read the last line"},
		{exitConfig, "the configuration, the certificates or the data directory cannot be used; or they, or the HSM partition, are not this member's", false, "kmsd config check, kmsd doctor"},
		{exitPIN, "the HSM refused the PIN; it was tried once, and a token that is tried too often locks", true, "correct the PIN, then start"},
		{exitHSM, "the HSM cannot be used, or fails its self-test", false, "bring it back; kmsd hsm check"},
		{exitRemoved, "the node was removed from the cluster", true, "wipe it, or let it join anew"},
		{exitStorage, "the disk failed or is full", false, "make room, or replace the disk"},
		{exitDiffers, "the node's state differs from the cluster's", true, "keep the data directory, find out why, join anew with an empty one"},
		{exitAltered, "the log, a snapshot or the audit trail on the disk was altered, or is damaged", true, "keep the data directory, find out why, join anew with an empty one"},
		{exitFinding, "kmsd audit verify: the trail is not what was signed", false, "keep it, and see what the cluster remembers: kmsctl audit heads"},
	}
}

// exitCodesTopic is the page of kmsd help exit-codes.
func exitCodesTopic() *cobra.Command {
	var b strings.Builder
	b.WriteString("Exit codes of kmsd. After those marked with * a supervisor must not start the node\nagain by itself: a person has something to do first.\n\n")
	for _, x := range exits() {
		mark := " "
		if x.final {
			mark = "*"
		}
		fmt.Fprintf(&b, "  %d %s %s\n        %s\n", x.code, mark, x.meaning, x.do)
	}
	b.WriteString("\nkmsd hsm check and kmsd doctor exit with 1 if what they looked at is not as it must be.")
	return &cobra.Command{Use: "exit-codes", Short: "What the exit codes mean, and which must not be restarted", Long: b.String()}
}
