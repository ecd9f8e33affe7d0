package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/quorumkms/quorumkms/rpc/client"
	"github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

const (
	maxShown = 10              // resources, before a key is taken away
	maxLook  = 3 * time.Second // how long looking for them may hold that up
)

func (a *app) keyResources() *cobra.Command {
	var p page
	c := &cobra.Command{
		Use:     "resources KEY",
		Short:   "List what a key protects",
		Example: "  kmsctl key resources alias/volumes",
		RunE: a.remote(func(ctx context.Context, kms *client.Client, args []string) error {
			all, err := listResources(ctx, kms, args[0], p)
			if err != nil {
				return err
			}
			return a.print(all, func(w io.Writer) error {
				rows := [][]string{{"RESOURCE", "SINCE", "REGISTERED BY"}}
				for _, r := range all.GetResources() {
					rows = append(rows, []string{r.GetName(), timeText(r.GetRegistrationDate()), r.GetRegisteredBy()})
				}
				return writePage(w, rows, all.GetNextMarker())
			})
		}),
	}
	p.flags(c)
	return c
}

func listResources(ctx context.Context, kms *client.Client, key string, p page) (*quorumkmsv1.ListResourcesResponse, error) {
	all := &quorumkmsv1.ListResourcesResponse{}
	var err error
	all.Resources, all.NextMarker, err = collect(p, func(limit uint32, marker string) ([]*quorumkmsv1.Resource, string, error) {
		r, err := kms.Keys().ListResources(ctx, &quorumkmsv1.ListResourcesRequest{KeyId: key, Limit: limit, Marker: marker})
		all.IndexToken = r.GetIndexToken()
		return r.GetResources(), r.GetNextMarker(), err
	})
	return all, err
}

func (a *app) keyBind() *cobra.Command {
	return a.mutatesKey(&cobra.Command{
		Use:   "bind KEY RESOURCE",
		Short: "Register something that a key protects",
		Long: `Register something that a key protects: a volume, a bucket, a database.

The key cannot be deleted before all of them are released. RESOURCE is a name of 1 to
512 bytes; registered twice, it is registered.`,
		Example: "  kmsctl key bind alias/volumes volume/v-17",
		RunE: a.remote(func(ctx context.Context, kms *client.Client, args []string) error {
			r, err := kms.Keys().BindResource(ctx, &quorumkmsv1.BindResourceRequest{
				KeyId: args[0], Resource: args[1],
				ExpectedRevision: a.revision, DryRun: a.dryRun, RequestId: a.requestID,
			})
			if err != nil {
				return err
			}
			return a.printLine(r, "%s protects %s.", args[0], args[1])
		}),
	})
}

func (a *app) keyRelease() *cobra.Command {
	return a.mutatesKey(&cobra.Command{
		Use:   "release KEY RESOURCE",
		Short: "Say that a key does not protect something any more",
		Long: `Say that a key does not protect something any more: it is gone, or another key
protects it. Whoever registered it may, and key administrators.`,
		Example: "  kmsctl key release alias/volumes volume/v-17",
		RunE: a.remote(func(ctx context.Context, kms *client.Client, args []string) error {
			r, err := kms.Keys().ReleaseResource(ctx, &quorumkmsv1.ReleaseResourceRequest{
				KeyId: args[0], Resource: args[1],
				ExpectedRevision: a.revision, DryRun: a.dryRun, RequestId: a.requestID,
			})
			if err != nil {
				return err
			}
			return a.printLine(r, "%s does not protect %s any more.", args[0], args[1])
		}),
	})
}

// showUse tells what depends on a key before it is taken away. It keeps nobody from
// doing so: what cannot be found out in time is not shown.
func (a *app) showUse(ctx context.Context, kms *client.Client, key string) {
	ctx, cancel := context.WithTimeout(ctx, maxLook)
	defer cancel()
	r, err := kms.Keys().DescribeKey(ctx, &quorumkmsv1.DescribeKeyRequest{KeyId: key})
	var text string
	switch {
	case errors.Is(err, client.ErrNotFound):
		return // the command itself will say so
	case err != nil:
		text = clean(fmt.Sprintf("What %s protects is not known: %v", key, err)) + "\n"
	default:
		text = useText(key, r.GetKey(), a.protects(ctx, kms, key, r.GetKey()))
	}
	fmt.Fprint(a.stderr, text) //nolint:errcheck // a courtesy
}

// protects are lines on what a key protects.
func (a *app) protects(ctx context.Context, kms *client.Client, key string, k *quorumkmsv1.KeyMetadata) []string {
	if k.GetResourceCount() == 0 {
		return nil
	}
	all, err := listResources(ctx, kms, key, page{limit: maxShown})
	if err != nil {
		return []string{fmt.Sprintf("which ones is not known: %v", err)}
	}
	var lines []string
	for _, r := range all.GetResources() {
		lines = append(lines, r.GetName())
	}
	switch shown := uint64(len(lines)); {
	case k.GetResourceCount() > shown:
		lines = append(lines, fmt.Sprintf("and %d more", k.GetResourceCount()-shown))
	case all.GetNextMarker() != "": // some came meanwhile
		lines = append(lines, "and more")
	}
	return lines
}

func useText(key string, k *quorumkmsv1.KeyMetadata, protects []string) string {
	var b strings.Builder
	switch n := k.GetResourceCount(); n {
	case 0:
		fmt.Fprintf(&b, "%s protects nothing that is registered.\n", clean(key))
	case 1:
		fmt.Fprintf(&b, "%s protects 1 resource:\n", clean(key))
	default:
		fmt.Fprintf(&b, "%s protects %d resources:\n", clean(key), n)
	}
	for _, line := range protects {
		fmt.Fprintf(&b, "  %s\n", shorten(clean(line)))
	}
	fmt.Fprintf(&b, "Last used: %s.\n", usedText(k.GetLastUsed()))
	return b.String()
}
